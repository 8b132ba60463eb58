from .unet import UNet as UNet
from .losses import DiceCE as DiceCE
from .metrics import assd_mm as assd_mm
from .metrics import dice_score as dice_score
from .metrics import hd95_mm as hd95_mm
from .predict import SegmentRecipe as SegmentRecipe
from .predict import load_model as load_model
from .predict import save_model as save_model

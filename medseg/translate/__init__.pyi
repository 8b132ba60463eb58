from .settings import Settings as Settings
from .step import CycleGAN as CycleGAN
from .step import fit_cyclegan as fit_cyclegan
from .generators import generator as generator
from .discriminators import discriminator as discriminator
from .predict import TranslateRecipe as TranslateRecipe
from .predict import load_translator as load_translator
from .predict import translate_scan as translate_scan

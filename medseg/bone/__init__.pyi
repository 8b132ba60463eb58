from .threshold import bone_mask as bone_mask
from .threshold import bone_threshold as bone_threshold
from .mesh import bone_mesh as bone_mesh
from .mesh import write_mesh as write_mesh
from .surface import surface_error as surface_error
from .parts import part_report as part_report

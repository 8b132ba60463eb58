"Bone out of CT: thresholds, meshes, surfaces, parts, jitter, uncertainty."

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

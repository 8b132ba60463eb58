"Segmentation in 2.5-D: attention, U-Net, losses, metrics, prediction of whole scans."

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

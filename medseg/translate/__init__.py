"MR to CT by CycleGAN: networks, losses, gradient audit, training step, prediction."

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

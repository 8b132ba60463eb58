"Does the scale change with z: survey, content against headers, the verdict."

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

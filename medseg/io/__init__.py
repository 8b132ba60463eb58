"Scans of any format as one `Volume`: reading, writing, checks, resampling, intensity."

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

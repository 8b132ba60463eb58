"Mode collapse: similarity, diversity, dependence, leak, the panel, the alarm."

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

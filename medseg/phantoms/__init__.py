"People made of formulas, seen by made-up scanners: abdomens as CT, spines as CT and MR."

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"Which scan belongs to whom, and what a network gets to see: manifests, slabs, patches."

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

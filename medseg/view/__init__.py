"Scans to look at: stills, slices to page through, niivue, itkwidgets, JupyterLab."

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

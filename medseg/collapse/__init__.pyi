from .folders import saved_panel as saved_panel
from .page import panel_page as panel_page
from .alarm import Monitor as Monitor
from .alarm import fit_watched as fit_watched
from .similarity import pairing as pairing
from .similarity import similarity_matrix as similarity_matrix
from .diversity import effective_volumes as effective_volumes

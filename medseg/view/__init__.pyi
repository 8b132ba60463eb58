from .viewer import view as view
from .show import montage as montage
from .show import overlay as overlay
from .side import panels as panels
from .side import scroll as scroll

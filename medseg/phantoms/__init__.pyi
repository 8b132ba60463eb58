from .scanner import Phantom as Phantom
from .scanner import abdomen as abdomen
from .anatomy import ABDOMEN as ABDOMEN
from .spine_scanner import spine_ct as spine_ct
from .spine_scanner import spine_mr as spine_mr

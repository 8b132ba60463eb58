from .loop import fit as fit
from .loop import seed_everything as seed_everything
from .checkpoint import load_network as load_network
from .checkpoint import save_network as save_network
from .distributed import launch as launch
from .statistics import answer_questions as answer_questions
from .statistics import group_intervals as group_intervals

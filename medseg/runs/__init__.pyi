from .folder import finish_run as finish_run
from .folder import resume_run as resume_run
from .folder import start_run as start_run
from .execute import run_experiment as run_experiment
from .record import find_runs as find_runs
from .record import read_run as read_run
from .compare import compare_runs as compare_runs
from .shelf import keep_run as keep_run

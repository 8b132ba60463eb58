from .verdict import z_verdict as z_verdict
from .survey import find_volumes as find_volumes
from .content import content_of as content_of
from .coverage import coverage_of as coverage_of
from .page import survey_page as survey_page
from .trust import check_scan as check_scan

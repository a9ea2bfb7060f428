"""The public names of the doctor, see `autotimm/__init__.pyi`."""

from .documented import Operator as Operator
from .finding import Finding as Finding
from .trace import preflight as preflight
from .training_step import judge as judge

"""The public names of the doctor, see `autotimm/__init__.pyi`."""

from .documented import Operator as Operator
from .finding import Finding as Finding
from .real import judge as judge
from .trace import preflight as preflight

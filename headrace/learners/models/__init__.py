"""Models: each a declaration that builds a torch module; River's behind the same predict and learn."""

from headrace.learners.models.deep_fm import DeepFM as DeepFM
from headrace.learners.models.logistic import Logistic as Logistic
from headrace.learners.models.model import Fields as Fields
from headrace.learners.models.model import Model as Model
from headrace.learners.models.on_river import RiverLearner as RiverLearner

"""Models: declarations that build a torch module, their losses, and River models with the same predict and learn."""

from headrace.learners.models.deep_fm import DeepFM as DeepFM
from headrace.learners.models.log_loss import LogLoss as LogLoss
from headrace.learners.models.logistic import Logistic as Logistic
from headrace.learners.models.loss import Loss as Loss
from headrace.learners.models.loss import TorchLoss as TorchLoss
from headrace.learners.models.model import Fields as Fields
from headrace.learners.models.model import Model as Model
from headrace.learners.models.on_river import RiverLearner as RiverLearner

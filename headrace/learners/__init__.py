"""Online learning: embedding tables, models, the learner, evaluation, the gate and snapshots."""

from headrace.extras import require

require("torch")

from headrace.learners.columns import column_of as column_of
from headrace.learners.columns import columns_of as columns_of
from headrace.learners.drift import Drift as Drift
from headrace.learners.input_spec import Bag as Bag
from headrace.learners.input_spec import Categorical as Categorical
from headrace.learners.input_spec import Dense as Dense
from headrace.learners.input_spec import Derived as Derived
from headrace.learners.input_spec import InputSpec as InputSpec
from headrace.learners.input_spec import Match as Match
from headrace.learners.inputs import PAD as PAD
from headrace.learners.inputs import Inputs as Inputs
from headrace.learners.labels.label import Label as Label
from headrace.learners.labels.policy import Correct as Correct
from headrace.learners.labels.policy import Importance as Importance
from headrace.learners.labels.policy import LabelPolicy as LabelPolicy
from headrace.learners.labels.policy import Wait as Wait
from headrace.learners.learner import Learner as Learner
from headrace.learners.models.deep_fm import DeepFM as DeepFM
from headrace.learners.models.log_loss import LogLoss as LogLoss
from headrace.learners.models.logistic import Logistic as Logistic
from headrace.learners.models.loss import Loss as Loss
from headrace.learners.models.loss import TorchLoss as TorchLoss
from headrace.learners.models.model import Fields as Fields
from headrace.learners.models.model import Model as Model
from headrace.learners.models.model import ZeroHead as ZeroHead
from headrace.learners.models.on_river import RiverLearner as RiverLearner
from headrace.learners.models.per_label import PerLabel as PerLabel
from headrace.learners.models.per_label import SquaredError as SquaredError
from headrace.learners.models.shared_bottom import SharedBottom as SharedBottom
from headrace.learners.online import OnlineLearner as OnlineLearner
from headrace.learners.prequential import Prequential as Prequential
from headrace.learners.prequential import auc as auc
from headrace.learners.publishing.directory import Follower as Follower
from headrace.learners.publishing.directory import ModelDirectory as ModelDirectory
from headrace.learners.publishing.directory import Staged as Staged
from headrace.learners.publishing.gate import Calibration as Calibration
from headrace.learners.publishing.gate import Finite as Finite
from headrace.learners.publishing.gate import Gate as Gate
from headrace.learners.publishing.gate import NormJump as NormJump
from headrace.learners.publishing.gate import NotWorse as NotWorse
from headrace.learners.publishing.gate import ProbeParity as ProbeParity
from headrace.learners.publishing.gate import Verdict as Verdict
from headrace.learners.publishing.scorer import Scorer as Scorer
from headrace.learners.publishing.snapshot import Manifest as Manifest
from headrace.learners.publishing.snapshot import Snapshot as Snapshot
from headrace.learners.sampling import Negatives as Negatives
from headrace.learners.sampling import RecentPopularity as RecentPopularity
from headrace.learners.sampling import log_rate as log_rate
from headrace.learners.tables.optimizers import Adagrad as Adagrad
from headrace.learners.tables.optimizers import Adam as Adam
from headrace.learners.tables.optimizers import Ftrl as Ftrl
from headrace.learners.tables.optimizers import Optimizer as Optimizer
from headrace.learners.tables.table import EmbeddingTable as EmbeddingTable
from headrace.learners.tables.table import TablePolicy as TablePolicy

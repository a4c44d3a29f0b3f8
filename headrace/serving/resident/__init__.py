"""Resident candidates: what the model reads of the candidates alone, kept in the replica and refreshed on a clock."""

from headrace.serving.resident.candidates import ResidentCandidates as ResidentCandidates
from headrace.serving.resident.catalogue import Catalogue as Catalogue
from headrace.serving.resident.split_inputs import SplitInputs as SplitInputs

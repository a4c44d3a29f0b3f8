"""Resident candidates: values that depend on the candidate alone, kept in the replica and refreshed periodically."""

from headrace.serving.resident.candidates import ResidentCandidates as ResidentCandidates
from headrace.serving.resident.catalogue import Catalogue as Catalogue
from headrace.serving.resident.split_inputs import SplitInputs as SplitInputs

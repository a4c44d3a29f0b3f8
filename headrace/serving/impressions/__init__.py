"""The served log: each ranking as it was served, written as an event."""

from headrace.serving.impressions.batch import Impression as Impression
from headrace.serving.impressions.batch import ImpressionBatch as ImpressionBatch
from headrace.serving.impressions.batch import ImpressionColumns as ImpressionColumns
from headrace.serving.impressions.log import ImpressionLog as ImpressionLog

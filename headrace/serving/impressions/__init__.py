"""The served log: rankings as they were served, as events."""

from headrace.serving.impressions.batch import Impression as Impression
from headrace.serving.impressions.batch import ImpressionBatch as ImpressionBatch
from headrace.serving.impressions.batch import ImpressionColumns as ImpressionColumns
from headrace.serving.impressions.log import ImpressionLog as ImpressionLog

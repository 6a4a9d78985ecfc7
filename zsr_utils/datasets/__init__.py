"""Data sets: `load_dataset` and what it returns."""

from zsr_utils.datasets._captioned import Captioned, captioned, class_captions
from zsr_utils.datasets._catalogue import NAMES, data_folder, source
from zsr_utils.datasets._cue_conflict import cues
from zsr_utils.datasets._dataset import Dataset, Sample, UnreadableImages
from zsr_utils.datasets._download import DownloadError, download
from zsr_utils.datasets._embedded import reading_doses, tabletop_factors, tabletop_splits, tabletop_words
from zsr_utils.datasets._folders import any_pictures
from zsr_utils.datasets._imagenet import FACTORS, imagenet_templates, imagenet_x
from zsr_utils.datasets._names import imagenet_classes
from zsr_utils.datasets._pairs import Pair, pairs_of
from zsr_utils.datasets._published import PUBLISHED_IMAGES, published, published_accuracy
from zsr_utils.datasets._questions import (
    YES_NO, Question, Questions, choices, prior_questions, question_file, yes_or_no,
)  # fmt: skip
from zsr_utils.datasets._rendered import blank_cards, rendered, tabletop_scenes
from zsr_utils.datasets._scenes import (
    alike_views, asked_scenes, captioned_scenes, changed_words, hard_scenes, near_duplicates, pretraining_part,
    tabletop_frames, tabletop_outside, tabletop_surfaces, turned_views, TYPICAL_PATTERN,
    words_of_no_kind,
)  # fmt: skip
from zsr_utils.datasets._shifts import Shift, natural_shifts, pm_sets, video_frames
from zsr_utils.datasets._twins import TWINS, planted
from zsr_utils.datasets._typographic import card, one_words, printed, random_of, scam, scattered, typographic
from zsr_utils.datasets._sources import load_dataset
from zsr_utils.datasets._webdataset import is_webdataset

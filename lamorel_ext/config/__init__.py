"""The typed configuration: one schema, read from YAML, checked as a whole."""

from lamorel_ext.config.plugs import Plug, Plugs, check_trust, leaves, plugs_of
from lamorel_ext.config.reading import (
    from_mapping,
    load_config,
    load_matrix,
    read_config,
    save_config,
    to_mapping,
    to_yaml,
)
from lamorel_ext.config.schema import (
    AccelerateArgs,
    ArmArgs,
    CompareArgs,
    Config,
    DistributedSetupArgs,
    DrrnArgs,
    EnvArgs,
    GuidanceArgs,
    LamorelArgs,
    LlmArgs,
    LoraArgs,
    ParallelismArgs,
    RunArgs,
    Shards,
    StageArgs,
    StudentArgs,
)
from lamorel_ext.config.sources import CONFIG_DIR, groups, search_folders
from lamorel_ext.config.sweeps import SweptRun, listed, sweep
from lamorel_ext.methods.cloning.options import CloningArgs
from lamorel_ext.methods.feedback.options import (
    CREDITS_OF_CANDIDATES,
    ONLINE_SIGNALS,
    FeedbackArgs,
    Signal,
)
from lamorel_ext.methods.ppo.options import PpoArgs

__all__ = [
    "AccelerateArgs",
    "ArmArgs",
    "CONFIG_DIR",
    "CloningArgs",
    "CREDITS_OF_CANDIDATES",
    "CompareArgs",
    "Config",
    "DistributedSetupArgs",
    "DrrnArgs",
    "EnvArgs",
    "FeedbackArgs",
    "GuidanceArgs",
    "LamorelArgs",
    "LlmArgs",
    "LoraArgs",
    "ONLINE_SIGNALS",
    "ParallelismArgs",
    "Plug",
    "Plugs",
    "PpoArgs",
    "RunArgs",
    "Shards",
    "Signal",
    "StageArgs",
    "StudentArgs",
    "SweptRun",
    "check_trust",
    "from_mapping",
    "groups",
    "leaves",
    "listed",
    "load_config",
    "load_matrix",
    "plugs_of",
    "read_config",
    "save_config",
    "search_folders",
    "sweep",
    "to_mapping",
    "to_yaml",
]

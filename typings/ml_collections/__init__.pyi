# For pyright: the package says that a field is one of str, float, list, ..., so no field could be used without a
# cast. Here a field is Any. Described is only what this project uses, or may.
from ml_collections import config_dict as config_dict
from ml_collections.config_dict import ConfigDict as ConfigDict
from ml_collections.config_dict import FrozenConfigDict as FrozenConfigDict

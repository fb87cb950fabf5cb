from flip_ctr.modeling_flip.configuration_flip import *  # noqa: F403

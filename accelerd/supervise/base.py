from accelerd.instances import *  # noqa: F403

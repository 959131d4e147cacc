"""The data plane's benchmark: direct / nginx / accelerd side by side in one run. See README.md beside this file."""

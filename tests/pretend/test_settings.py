"""Every setting of placement, and what a run does beside training, works on the device."""

import pytest
import torch

from mvczigal_ref.errors import MvczigalError

"""`python -m posemamba_jax.model --preset B`: what the model costs."""

import sys

from posemamba_jax.model.summary import main

sys.exit(main())

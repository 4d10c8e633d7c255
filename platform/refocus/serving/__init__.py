"""The HTTP service: plain classes that know nothing of Ray, and the deployments that run them."""

"""How the service is deployed: Compose, Kubernetes and KServe, and the check of the image that they run."""

"""A run as a service over HTTP, which the official clients of other services talk to."""

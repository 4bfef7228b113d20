"""The service: the store over HTTP, for Hubble's client, for programs, and for people."""

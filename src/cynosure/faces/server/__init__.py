"""The store over HTTP: for Hubble's client (stwcs), for programs (JSON), and for browsers."""

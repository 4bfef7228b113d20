"""What is made: simulated scenes, later coadds and catalogues."""

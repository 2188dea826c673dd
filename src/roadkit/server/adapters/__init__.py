"""Which adapters there are: the catalog, uploads, watched folders, remote sources, and what is in memory."""

"""Person search in one's own footage: searcher, sources, indexing, vector store, queries, command line and page.

May import `data`, `modeling`, `evaluation`, `report` and `weights`, and `adapt` the engine; nothing outside imports it.
Importing a module here stays cheap: torch, lancedb, pymilvus, av, fastapi and trackers are loaded by what needs them.
"""

"""Person search in one's own footage: searcher, sources, indexing, vector store, queries, command line and page.

May import the rest of `person_search` but `synthetic` and `reproduction`; nothing outside this folder imports it.
Importing a module here stays cheap: torch, lancedb, pymilvus, av, fastapi and trackers are loaded by what needs them.
"""

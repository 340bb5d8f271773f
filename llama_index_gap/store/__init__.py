"""Milvus: collections of nodes, filters, rows, the connection."""

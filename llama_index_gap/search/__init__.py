"""Searching: legs, fusion, the retriever, the reranker."""

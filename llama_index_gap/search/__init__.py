"""Legs, fusion, the retriever, the reranker."""

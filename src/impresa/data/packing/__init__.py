"""Any data, written as shards or parquet, and divided so that equal and near-equal images stay together."""

"""The Parquet tables that steps exchange: their schemas, and how they are read and written."""

def infer_schema(files, path):
    pass

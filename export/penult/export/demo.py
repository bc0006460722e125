"""stub to be replaced below"""

"""Repository providers, one for each prefix of BinderHub's `/build/<provider>/<spec>`."""

"""The embedded data set's world: scenes (`scenes`), their pictures (`rendering`) and their captions (`captions`)."""

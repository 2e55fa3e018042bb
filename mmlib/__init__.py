"""Multi-modal semantic segmentation that does not lean on one sensor."""

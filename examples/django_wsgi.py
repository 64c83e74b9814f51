"""Django, as a WSGI app: `pycluster serve django_wsgi:app`."""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="only an example")


def hello(request):
    return JsonResponse({"worker": os.getpid()})


urlpatterns = [path("", hello)]
app = get_wsgi_application()

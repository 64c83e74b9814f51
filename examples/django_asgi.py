"""Django, as an ASGI app: `pycluster serve django_asgi:app`."""

import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import JsonResponse
from django.urls import path

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="only an example")


async def hello(request):
    return JsonResponse({"worker": os.getpid()})


urlpatterns = [path("", hello)]
app = get_asgi_application()
